// Which interface this library was built with; see native.py.
extern "C" int nano3_abi() { return 8; }
