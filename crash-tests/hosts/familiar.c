/* A runtime that repairs a hundred faults at one site and then not the next one: it lets the fault happen again, aborts inside its
   handler, or raises a fault at another address there, as Go's runtime does. */
#include "host.h"
static const char *how;
static int gives_up;
static void repair(int s, siginfo_t *i, void *c) {
  (void)c;
  if (!gives_up) { make_page(i->si_addr); return; }
  if (!strcmp(how, "abort")) abort();
  signal(s, SIG_DFL);
  if (!strcmp(how, "again")) return;
  sigset_t it;
  sigemptyset(&it);
  sigaddset(&it, s);
  sigprocmask(SIG_UNBLOCK, &it, 0);
  raise(s);
}
__attribute__((noinline)) static void touch(volatile char *address) { *address = 1; }
int main(int argc, char **argv) {
  how = argc > 3 ? argv[3] : "again";
  handle(SIGSEGV, repair, SA_ONSTACK);
  load_client(argv);
  char *page = no_pages(1);
  for (int k = 0; k < 100; k++) { mprotect(page, PAGE, PROT_NONE); touch(page); }
  mprotect(page, PAGE, PROT_NONE);
  gives_up = 1;
  touch(strcmp(how, "raise") ? page : (char *)8); /* the fault that is not repaired */
  return 0;
}
