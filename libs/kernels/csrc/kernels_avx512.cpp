#define JANUS_TABLE kAvx512
#define JANUS_NAME "avx512"
#define JANUS_ROWS 4
#define JANUS_TOKENS 6
#include "kernels.inl"
