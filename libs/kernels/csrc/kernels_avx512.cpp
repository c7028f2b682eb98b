#define JANUS_TABLE kAvx512
#define JANUS_NAME "avx512"
#define JANUS_TOKENS 6
#define JANUS_WIDE true
#include "kernels.inl"
