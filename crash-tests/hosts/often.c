/* N repaired faults at one site. Exits with 4 if they cause more than a few calls that write. */
#include "host.h"
static void repair(int s, siginfo_t *i, void *c) { (void)s; (void)c; make_page(i->si_addr); }
static long writes(void) {
  char line[128];
  long count = -1;
  FILE *io = fopen("/proc/self/io", "r");
  while (io && fgets(line, sizeof line, io)) sscanf(line, "syscw: %ld", &count);
  if (io) fclose(io);
  return count;
}
int main(int argc, char **argv) {
  handle(SIGSEGV, repair, 0);
  load_client(argv);
  if (capture) sleep_ms(1000); /* the queue is open */
  char *page = no_pages(1);
  long before = writes();
  if (before < 0) return 77;
  for (int k = OWN(0, 10000); k > 0; k--) { mprotect(page, PAGE, PROT_NONE); *(volatile char *)page = 1; }
  long made = writes() - before;
  printf("%ld calls that write\n", made);
  return made > 100 ? 4 : 0;
}
