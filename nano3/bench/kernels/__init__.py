"""`nano3 bench kernels`: each op of nano3.kernels by itself."""
