"""When the gate runs: set-up, the premerge job, the GPU job. Every script here needs the standard library only."""
