/* Process 1 of a container: the kernel drops signals with a default action that it sends itself. */
#include "host.h"
int main(int argc, char **argv) {
  load_client(argv);
  const char *what = argc > 3 ? argv[3] : "";
  if (!strcmp(what, "abort")) abort();
#if defined(__x86_64__)
  if (!strcmp(what, "trap")) __asm__ volatile("int3");
#endif
  if (!strcmp(what, "raised")) raise(SIGSEGV);
  if (!strcmp(what, "fault")) *(volatile int *)8 = 1;
  return 0;
}
