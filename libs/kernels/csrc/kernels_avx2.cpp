#define JANUS_TABLE kAvx2
#define JANUS_NAME "avx2"
#define JANUS_ROWS 2
#define JANUS_TOKENS 3
#include "kernels.inl"
