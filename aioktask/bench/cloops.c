// SPDX-License-Identifier: MIT
//
// The loops that stand for the machine's limit: threads that take chunks from a shared cursor, with
// nothing else to do. Chunks end on absolute multiples of the chunk size, as those of a job do.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif

// FILL makes a file as long and populates a mapping of it; ALLOCATE calls fallocate chunk by chunk.
// PIN locks all on fault and populates; LOCK calls mlock chunk by chunk.
enum { POPULATE, CLEAR, COPY, RELEASE, FILL, ALLOCATE, PIN, LOCK };
enum { MOST_THREADS = 1024 };

struct work {
    int operation;
    int file;
    uintptr_t start, stop, chunk, base, source;
    atomic_uintptr_t next;  // the number of the next chunk, counted from base
    atomic_int error;       // the first errno, or 0
};

static int one_chunk(const struct work *work, uintptr_t from, size_t length)
{
    void *address = (void *)from;
    int result;
    switch (work->operation) {
    case CLEAR:
        memset(address, 0, length);
        return 0;
    case COPY:
        memmove(address, (void *)(work->source + (from - work->start)), length);
        return 0;
    case RELEASE:
        result = madvise(address, length, MADV_DONTNEED);
        break;
    case ALLOCATE:
        result = fallocate(work->file, 0, from - work->start, length);
        break;
    case LOCK:
        result = mlock(address, length);
        break;
    default:
        do
            result = madvise(address, length, MADV_POPULATE_WRITE);
        while (result && errno == EINTR);
    }
    return result ? errno : 0;
}

static void *serve(void *argument)
{
    struct work *work = argument;
    for (;;) {
        uintptr_t from = work->base + atomic_fetch_add(&work->next, 1) * work->chunk;
        uintptr_t to = from + work->chunk;
        if (from < work->start)
            from = work->start;
        if (to > work->stop)
            to = work->stop;
        if (from >= to || atomic_load(&work->error))
            return NULL;
        int error = one_chunk(work, from, to - from);
        if (error) {
            int none = 0;
            atomic_compare_exchange_strong(&work->error, &none, error);
        }
    }
}

static int in_threads(struct work *work, int threads)
{
    pthread_t ids[MOST_THREADS];
    int started = 0, error = 0;
    while (started < threads && !error) {
        error = pthread_create(&ids[started], NULL, serve, work);
        if (!error)
            started++;
    }
    for (int i = 0; i < started; i++)
        pthread_join(ids[i], NULL);
    return error ? error : atomic_load(&work->error);
}

// `source` is where COPY copies from, `file` what FILL and ALLOCATE fill. Returns 0 or an errno.
int aioktask_loop(int operation, uintptr_t address, size_t length, size_t chunk, int threads,
                  uintptr_t source, int file)
{
    if (threads < 1 || threads > MOST_THREADS)
        return EINVAL;
    void *mapped = NULL;
    if (operation == FILL) {
        if (ftruncate(file, length))
            return errno;
        mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (mapped == MAP_FAILED)
            return errno;
        address = (uintptr_t)mapped;
    }
    if (operation == PIN && mlock2((void *)address, length, MLOCK_ONFAULT))
        return errno;
    struct work work = {
        .operation = operation,
        .file = file,
        .start = address,
        .stop = address + length,
        .chunk = chunk,
        .base = address - address % chunk,
        .source = source,
    };
    int error = in_threads(&work, threads);
    if (mapped)
        munmap(mapped, length);
    return error;
}
