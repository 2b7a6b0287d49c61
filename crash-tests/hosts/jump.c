/* Handlers that leave by `siglongjmp`, on many threads, most of which end afterwards. */
#include "host.h"
static __thread sigjmp_buf guard;
static void leave(int s, siginfo_t *i, void *c) { (void)s; (void)i; (void)c; siglongjmp(guard, 1); }
static void *once(void *x) {
  if (!sigsetjmp(guard, 1)) *(volatile int *)8 = 1;
  return x;
}
int main(int argc, char **argv) {
  handle(SIGSEGV, leave, 0);
  load_client(argv);
  int times = OWN(0, 600);
  pthread_t thread[50];
  pthread_create(thread, 0, once, 0);
  pthread_join(thread[0], 0); /* the first thread that jumped has ended */
  double began = now();
  once(0);
  if (now() - began > 0.5) return 3;
  for (int i = 0; i < times; i += 50) {
    for (int k = 0; k < 50; k++) pthread_create(thread + k, 0, once, 0);
    for (int k = 0; k < 50; k++) pthread_join(thread[k], 0);
  }
  return 0;
}
