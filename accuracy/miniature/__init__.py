"""The miniature: a small Qwen3.5-MoE that learns the project's own word problems, and how it is trained."""
