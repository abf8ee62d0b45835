// SPDX-License-Identifier: MIT
//
// The loop that stands for the machine's limit: threads that take chunks from a shared cursor, with
// nothing else to do. Chunks end on absolute multiples of the chunk size, as those of a job do.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { POPULATE, CLEAR };
enum { MOST_THREADS = 1024 };

struct work {
    int operation;
    uintptr_t start, stop, chunk, base;
    atomic_uintptr_t next;  // the number of the next chunk, counted from base
    atomic_int error;       // the first errno, or 0
};

static int one_chunk(int operation, void *address, size_t length)
{
    if (operation == CLEAR) {
        memset(address, 0, length);
        return 0;
    }
    int result;
    do
        result = madvise(address, length, MADV_POPULATE_WRITE);
    while (result && errno == EINTR);
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
        int error = one_chunk(work->operation, (void *)from, to - from);
        if (error) {
            int none = 0;
            atomic_compare_exchange_strong(&work->error, &none, error);
        }
    }
}

// Returns 0 or an errno.
int aioktask_loop(int operation, uintptr_t address, size_t length, size_t chunk, int threads)
{
    struct work work = {
        .operation = operation,
        .start = address,
        .stop = address + length,
        .chunk = chunk,
        .base = address - address % chunk,
    };
    pthread_t ids[MOST_THREADS];
    int started = 0, error = 0;
    if (threads < 1 || threads > MOST_THREADS)
        return EINVAL;
    while (started < threads && !error) {
        error = pthread_create(&ids[started], NULL, serve, &work);
        if (!error)
            started++;
    }
    for (int i = 0; i < started; i++)
        pthread_join(ids[i], NULL);
    return error ? error : atomic_load(&work.error);
}
