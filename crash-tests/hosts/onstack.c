/* A handler that refuses to run on any stack but the alternate stack set by its runtime, as Go's does. */
#include "host.h"
static char alternate[65536];
static void repair(int s, siginfo_t *i, void *c) {
  (void)s; (void)c;
  stack_t known;
  sigaltstack(0, &known);
  uintptr_t sp = (uintptr_t)__builtin_frame_address(0), from = (uintptr_t)known.ss_sp;
  if (known.ss_flags & SS_DISABLE || sp < from || sp >= from + known.ss_size || known.ss_sp != alternate) _exit(2);
  make_page(i->si_addr);
}
int main(int argc, char **argv) {
  (void)argc;
  stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
  sigaltstack(&stack, 0);
  handle(SIGSEGV, repair, SA_ONSTACK);
  load_client(argv);
  char *memory = no_pages(8);
  for (int i = 0; i < 8; i++) memory[i * PAGE] = 1;
  return 0;
}
