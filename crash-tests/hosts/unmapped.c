/* Unwind tables that are no longer mapped: a fault in a library that is half unloaded, once repaired and once not. */
#include "host.h"
static void repair(int s, siginfo_t *i, void *c) {
  (void)c;
  if ((uintptr_t)i->si_addr < 65536) { signal(s, SIG_DFL); return; }
  make_page(i->si_addr);
}
int main(int argc, char **argv) {
  (void)argc;
  void *library = dlopen("libm.so.6", RTLD_NOW);
  double (*split)(double, int *) = (double (*)(double, int *))dlsym(library, "frexp");
  if (!split) return 77;
  handle(SIGSEGV, repair, 0);
  load_client(argv);
  /* The read-only segment after the code. */
  char line[512];
  unsigned long from[8], to[8];
  int found = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  while (fgets(line, sizeof line, maps)) {
    unsigned long a, b, offset;
    char rights[8];
    if (strstr(line, "/libm.so.6") && sscanf(line, "%lx-%lx %7s %lx", &a, &b, rights, &offset) == 4 &&
        !strncmp(rights, "r--p", 4) && a > (unsigned long)split && found < 8)
      from[found] = a, to[found++] = b;
  }
  fclose(maps);
  if (!found) return 77;
  /* Only the first: relocated data follows. */
  munmap((void *)from[0], to[0] - from[0]);
  char *page = no_pages(1);
  volatile double number = 8.0;
  number = split(number, (int *)page);
  number = split(number, (int *)8); /* the fault that is not repaired */
  return (int)number;
}
