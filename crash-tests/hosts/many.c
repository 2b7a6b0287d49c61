/* Repaired faults on many threads at once: N threads, R faults each, B rounds. */
#include "host.h"
static pthread_barrier_t together;
static int rounds;
static void repair(int s, siginfo_t *i, void *c) { (void)s; (void)c; make_page(i->si_addr); }
static void *work(void *x) {
  char *page = x;
  for (int r = 0; r < rounds; r++) { mprotect(page, PAGE, PROT_NONE); pthread_barrier_wait(&together); page[0] = 1; }
  return 0;
}
int main(int argc, char **argv) {
  int threads = OWN(0, 300);
  rounds = OWN(1, 3);
  handle(SIGSEGV, repair, 0);
  load_client(argv);
  char *memory = no_pages(threads);
  pthread_barrier_init(&together, 0, threads);
  pthread_t *thread = calloc(threads, sizeof *thread);
  double began = now();
  for (int i = 0; i < threads; i++) pthread_create(thread + i, 0, work, memory + (size_t)i * PAGE);
  for (int i = 0; i < threads; i++) pthread_join(thread[i], 0);
  printf("%.3f s\n", now() - began);
  return 0;
}
