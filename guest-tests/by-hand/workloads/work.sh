# Loops, functions, arrays, text and command substitution: no program is started.
fib() { local n=$1; if ((n < 2)); then echo "$n"; else echo $(($(fib $((n - 1))) + $(fib $((n - 2))))); fi; }
total=0
for ((i = 0; i < 50000; i++)); do ((total = (total * 31 + i) & 0xffffffff)); done
declare -A counts
for ((i = 0; i < 6000; i++)); do
    word="w$((i * 7919 % 1009))"
    counts[$word]=$((${counts[$word]:-0} + 1))
done
text=""
for word in "${!counts[@]}"; do text+="${word^^} "; done
echo "$total ${#counts[@]} ${#text} $(fib 8)"
