// Text, maps, objects and streams.
import java.util.*;
import java.util.stream.*;

public class Work {
    interface Shape { double area(); }
    record Circle(double radius) implements Shape { public double area() { return 3 * radius * radius; } }
    record Square(double side) implements Shape { public double area() { return side * side; } }

    static int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

    public static void main(String[] arguments) {
        Map<String, Integer> counts = new TreeMap<>();
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < 60000; i++) text.append((char) ('a' + i * 7 % 26)).append(i % 13 == 0 ? ' ' : 'x');
        for (String word : text.toString().split(" ")) counts.merge(word, 1, Integer::sum);
        List<Shape> shapes = new ArrayList<>();
        for (int i = 0; i < 200000; i++) shapes.add(i % 3 == 0 ? new Circle(i % 11) : new Square(i % 17));
        double area = shapes.stream().mapToDouble(Shape::area).sum();
        long even = IntStream.range(0, 2_000_000).filter(i -> i % 2 == 0).mapToLong(i -> i).sum();
        int hash = IntStream.range(0, 30000).mapToObj(Integer::toString).sorted().collect(Collectors.joining(",")).hashCode();
        System.out.println(fib(30) + " " + counts.size() + " " + area + " " + even + " " + hash);
    }
}
