/* Repaired faults, some left by a jump, and then an unrelated SIGKILL. */
#include "host.h"
static sigjmp_buf guard;
static void repair(int s, siginfo_t *i, void *c) {
  (void)s; (void)c;
  if ((uintptr_t)i->si_addr < 65536) siglongjmp(guard, 1);
  make_page(i->si_addr);
}
int main(int argc, char **argv) {
  (void)argc;
  handle(SIGSEGV, repair, 0);
  load_client(argv);
  if (capture) sleep_ms(3000); /* the reader has run once */
  char *memory = no_pages(8);
  for (int i = 0; i < 8; i++) memory[i * PAGE] = 1;
  for (volatile int i = 0; i < 8; i++) if (!sigsetjmp(guard, 1)) *(volatile int *)8 = 1;
  sleep_ms(OWN(0, 5000));
  kill(getpid(), SIGKILL);
  return 0;
}
