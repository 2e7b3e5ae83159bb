"""The commands of `gradmem-bench`, a file each; nothing heavy is imported before one is called."""
