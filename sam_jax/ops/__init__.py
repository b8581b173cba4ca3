"""Pure array functions: no Flax, no configs, no I/O."""
