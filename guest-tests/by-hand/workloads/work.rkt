#lang racket/base
;; Expanded and compiled at each start, then calls, tables and functions made by eval.
(define (fib n) (if (< n 2) n (+ (fib (- n 1)) (fib (- n 2)))))
(displayln (fib 29))
(define table (make-hash))
(for ([i (in-range 60000)])
  (hash-update! table (format "key ~a" (modulo (* i 7919) 10007)) add1 0))
(displayln (hash-count table))
(define-namespace-anchor here)
(define names (namespace-anchor->namespace here))
(displayln (for/sum ([i (in-range 60)]) ((eval `(lambda (x) (+ (* x ,i) 1)) names) i)))
(displayln (apply + (sort (for/list ([i (in-range 50000)]) (modulo (* i 7919) 50021)) <)))
