#define JANUS_TABLE kAvx512
#define JANUS_NAME "avx512"
#define JANUS_TOKENS 6
#define JANUS_PANELS 1
#include "kernels.inl"
