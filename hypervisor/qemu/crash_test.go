package qemu

const crashingDir = "RESERVOIR_TEST_CRASHING_AGENT"

func crashingAgent(dir string) {}
