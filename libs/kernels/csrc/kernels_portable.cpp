#define JANUS_TABLE kPortable
#define JANUS_NAME "portable"
#define JANUS_TOKENS 1
#define JANUS_WIDE false
#include "kernels.inl"
