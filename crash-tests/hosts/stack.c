/* A handler that needs half a megabyte of the thread's own stack, on several threads at once. */
#include "host.h"
static volatile char sink;
static void repair(int s, siginfo_t *i, void *c) {
  (void)s; (void)c;
  volatile char big[512 * 1024];
  for (size_t k = sizeof big; k-- > 0;) big[k] = (char)0xA5;
  sink = big[17];
  make_page(i->si_addr);
}
int main(int argc, char **argv) {
  (void)argc;
  handle(SIGSEGV, repair, 0);
  load_client(argv);
  char *memory = no_pages(1);
  memory[0] = 1;
  for (int i = 0; capture && i < 3; i++) if (!capture()) return 3;
  sleep_ms(500);
  return 0;
}
