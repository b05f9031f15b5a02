"""`nano3 quantize`: the stage, and the rows that it calibrates with."""
