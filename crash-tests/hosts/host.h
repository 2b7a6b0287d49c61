/* Included by each host. Arguments: queue directory and server for the client, or "-" twice to run without it; then the host's own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define OWN(at, otherwise) (argc > 3 + (at) ? atoi(argv[3 + (at)]) : (otherwise))

static int (*capture)(void);

/* Called after the host has installed its handlers, as a plugin would be loaded. */
static void load_client(char **argv) {
  if (!strcmp(argv[1], "-")) return;
  void *library = dlopen(getenv("PH_LIB"), RTLD_NOW | RTLD_LOCAL);
  if (!library) { fprintf(stderr, "%s\n", dlerror()); _exit(99); }
  int (*start)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(library, "ph_start");
  capture = (int (*)(void))dlsym(library, "ph_capture");
  if (!start || !capture || start(argv[1], argv[2])) _exit(98);
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags) {
  struct sigaction action = {0};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | flags;
  sigaction(signal, &action, 0);
}

/* Makes one page accessible, as managed runtimes do on the first access. */
static void make_page(void *address) {
  mprotect((void *)((uintptr_t)address & ~(uintptr_t)(PAGE - 1)), PAGE, PROT_READ | PROT_WRITE);
}

static char *no_pages(size_t count) {
  return mmap(0, count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static void sleep_ms(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&t, 0);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
