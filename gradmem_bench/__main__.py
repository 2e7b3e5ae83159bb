"""`python -m gradmem_bench`, the same as the command `gradmem-bench`."""

from gradmem_bench.cli import main

main()
