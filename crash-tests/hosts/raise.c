/* A runtime that repairs some faults and dies of the others inside its handler, as Go's does: it restores the default action, unblocks
   the signal, and raises it. */
#include "host.h"
static void repair(int s, siginfo_t *i, void *c) {
  (void)c;
  if ((uintptr_t)i->si_addr < 65536) {
    sigset_t it;
    sigemptyset(&it);
    sigaddset(&it, s);
    signal(s, SIG_DFL);
    sigprocmask(SIG_UNBLOCK, &it, 0);
    raise(s);
    return;
  }
  make_page(i->si_addr);
}
int main(int argc, char **argv) {
  struct sigaction action = {0};
  action.sa_sigaction = repair;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigfillset(&action.sa_mask);
  sigaction(SIGSEGV, &action, 0);
  load_client(argv);
  int repaired = OWN(0, 8);
  char *memory = no_pages(repaired);
  for (int i = 0; i < repaired; i++) memory[i * PAGE] = 1;
  *(volatile int *)8 = 1; /* the fault that is not repaired */
  return 0;
}
