/*
 * map shared|private FILE [OFF BYTES]
 *
 * Maps the file, waits for a line on standard input if OFF and BYTES are given,
 * stores BYTES at OFF, and prints what the mapping then holds.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	int shared = !strcmp(argv[1], "shared");
	int store = argc > 3;
	int fd = open(argv[2], store && shared ? O_RDWR : O_RDONLY);
	must(fd >= 0, "open");
	struct stat st;
	must(fstat(fd, &st) == 0, "fstat");
	char *p = mmap(NULL, st.st_size, PROT_READ | (store ? PROT_WRITE : 0), shared ? MAP_SHARED : MAP_PRIVATE, fd, 0);
	must(p != MAP_FAILED, "mmap");
	if (store) {
		char line[8];
		must(fgets(line, sizeof line, stdin) != NULL, "waiting");
		memcpy(p + atol(argv[3]), argv[4], strlen(argv[4]));
		if (shared)
			must(msync(p, st.st_size, MS_SYNC) == 0, "msync");
	}
	/* Through memory of our own: write(2) of a page that can't be read
	 * would fail with EFAULT instead of raising the signal. */
	char *copy = malloc(st.st_size);
	must(copy != NULL, "malloc");
	memcpy(copy, p, st.st_size);
	must(fwrite(copy, 1, st.st_size, stdout) == (size_t)st.st_size && fflush(stdout) == 0, "write");
	return 0;
}
