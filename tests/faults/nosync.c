/* A library to preload that promises to sync, and does not: the control that a power-cut test must fail on. */
int fsync(int fd) { (void)fd; return 0; }
int fdatasync(int fd) { (void)fd; return 0; }
