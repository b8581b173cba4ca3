"""The networks of Segment Anything, one file per noun of the paper."""
