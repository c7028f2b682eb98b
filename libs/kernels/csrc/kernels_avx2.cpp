#define JANUS_TABLE kAvx2
#define JANUS_NAME "avx2"
#define JANUS_TOKENS 3
#define JANUS_PANELS 1
#include "kernels.inl"
