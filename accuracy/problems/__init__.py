"""Grade-school word problems with worked solutions, made from templates: what the miniature model learns and is asked."""
