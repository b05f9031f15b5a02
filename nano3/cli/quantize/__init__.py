"""`nano3 quantize`: its verbs."""
