#define JANUS_TABLE kPortable
#define JANUS_NAME "portable"
#define JANUS_TOKENS 1
#include "kernels.inl"
