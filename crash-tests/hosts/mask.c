/* A handler that leaves by `longjmp`, which does not restore the signal mask: signals blocked in the handler stay blocked. */
#include "host.h"
static jmp_buf guard;
static sigset_t inside;
static void leave(int s, siginfo_t *i, void *c) {
  (void)s; (void)i; (void)c;
  sigprocmask(0, 0, &inside);
  longjmp(guard, 1);
}
int main(int argc, char **argv) {
  (void)argc;
  struct sigaction action = {0};
  action.sa_sigaction = leave;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaddset(&action.sa_mask, SIGUSR1);
  sigaction(SIGSEGV, &action, 0);
  load_client(argv);
  if (!setjmp(guard)) *(volatile int *)8 = 1;
  /* The mask must be exactly what it asked for. */
  for (int s = 1; s < 32; s++) if (sigismember(&inside, s) != (s == SIGUSR1)) return s;
  sleep_ms(4000); /* by then the survival is recorded */
  kill(getpid(), SIGTERM);
  sleep_ms(500);
  return 99;
}
