/* A runtime that repairs many faults, and then gets one that it cannot repair: it restores the default action and lets it happen again. */
#include "host.h"
static pthread_barrier_t together;
static int rounds;
static void repair(int s, siginfo_t *i, void *c) {
  (void)s; (void)c;
  if ((uintptr_t)i->si_addr < 65536) { signal(SIGSEGV, SIG_DFL); return; }
  make_page(i->si_addr);
}
static void *work(void *x) {
  char *page = x;
  for (int r = 0; r < rounds; r++) { mprotect(page, PAGE, PROT_NONE); pthread_barrier_wait(&together); page[0] = 1; }
  return 0;
}
int main(int argc, char **argv) {
  int threads = OWN(0, 8);
  rounds = OWN(1, 2000);
  handle(SIGSEGV, repair, 0);
  load_client(argv);
  char *memory = no_pages(threads);
  pthread_barrier_init(&together, 0, threads);
  pthread_t *thread = calloc(threads, sizeof *thread);
  for (int i = 0; i < threads; i++) pthread_create(thread + i, 0, work, memory + (size_t)i * PAGE);
  for (int i = 0; i < threads; i++) pthread_join(thread[i], 0);
  *(volatile int *)8 = 1; /* the fault that is not repaired */
  return 0;
}
