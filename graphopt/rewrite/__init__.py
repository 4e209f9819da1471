"""The rewrite engine: patches, patterns, rules, the pass manager, the registry and recipes."""
