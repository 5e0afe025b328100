from mcpdiag.cli import main

main()
