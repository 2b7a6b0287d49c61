/* Corrupts the heap of a thread, so that the C library aborts while it holds the lock of that heap. */
#include "host.h"
static void *work(void *x) {
  (void)x;
  free(malloc(100000)); /* creates a heap for this thread */
  volatile char *p = malloc(40);
  for (int i = 0; i < 4096; i++) p[i] = (char)0xff; /* overwrites its top */
  p = malloc(20000);
  printf("not noticed %p\n", (void *)p);
  return 0;
}
int main(int argc, char **argv) {
  (void)argc;
  load_client(argv);
  pthread_t thread;
  pthread_create(&thread, 0, work, 0);
  pthread_join(thread, 0);
  return 0;
}
