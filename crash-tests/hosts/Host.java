// A managed runtime, whose safepoints and null pointers are faults that its own handler repairs.
import java.util.concurrent.CountDownLatch;

public class Host {
  static native int start();
  static volatile boolean stop;
  static Object nothing;

  public static void main(String[] arguments) throws Exception {
    if (!arguments[0].equals("-")) {
      System.load(System.getenv("PH_LIB"));
      if (start() != 0) System.exit(98);
    }
    int count = Integer.parseInt(arguments[1]);
    Thread[] threads = new Thread[count];
    CountDownLatch up = new CountDownLatch(count), go = new CountDownLatch(1);
    for (int i = 0; i < count; i++) {
      threads[i] = new Thread(() -> {
        for (int k = 0; k < 200; k++) {
          try { nothing.hashCode(); } catch (NullPointerException expected) { }
        }
        up.countDown();
        try { go.await(); } catch (InterruptedException unexpected) { return; }
        long x = 0;
        while (!stop) x += spin(x);
        if (x == 42) System.out.println(x);
      });
      threads[i].setDaemon(true);
      threads[i].start();
    }
    up.await();
    go.countDown();
    int collections = arguments.length > 2 ? Integer.parseInt(arguments[2]) : 3;
    long began = System.nanoTime();
    for (int i = 0; i < collections; i++) System.gc();
    System.out.println((System.nanoTime() - began) / 1000000 + " ms");
    stop = true;
  }

  static long spin(long x) {
    long y = x;
    for (int i = 0; i != 1000003 && !stop; i++) y = y * 31 + i;
    return y;
  }
}
