"""What a step will cost before it runs: read from the programs that the TPU compiler makes."""
