# Calls, numbers, hashes, text and sorting.
use strict;
sub fib { my $n = shift; return $n < 2 ? $n : fib($n - 1) + fib($n - 2) }
my $total = 0;
$total = ($total * 31 + $_) & 0xffffffff for 0 .. 800000;
my @rows = map { { key => $_ * 7919 % 30011, name => "row $_" } } 0 .. 29999;
@rows = sort { $a->{key} <=> $b->{key} } @rows;
my %counts;
$counts{$_}++ for join(' ', map { $_->{name} } @rows) =~ /\w+/g;
print fib(22), " $total $rows[777]{name} ", scalar(keys %counts), "\n";
