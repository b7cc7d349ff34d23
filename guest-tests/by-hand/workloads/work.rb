# Calls, numbers, hashes, text and sorting.
def fib(n) = n < 2 ? n : fib(n - 1) + fib(n - 2)
total = 0
400_000.times { |i| total = (total * 31 + i) & 0xffffffff }
rows = (0...30_000).map { |i| { key: i * 7919 % 30_011, name: "row #{i}" } }
rows.sort_by! { |row| row[:key] }
counts = Hash.new(0)
rows.map { |row| row[:name] }.join(' ').scan(/\w+/) { |word| counts[word] += 1 }
puts "#{fib(23)} #{total} #{rows[777][:name]} #{counts.size}"
