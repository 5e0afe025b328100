"""Load, workloads, versioned results, comparisons and gates. The CLI passes in URLs and commands; nothing here knows the proxy."""
