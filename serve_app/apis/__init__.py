"""Other APIs of the same models: a request becomes a chat, and the chat's answer becomes that API's. Runs on ingress replicas.

Pure functions, without HTTP. The official packages' types are not imported: openai's cost a process 1 s and 40 MiB, anthropic's
2 s and 66 MiB.
"""
