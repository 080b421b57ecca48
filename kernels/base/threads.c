#include "kernels/base/threads.h"

#include <pthread.h>
#include <stdlib.h>

struct threads {
    int count;
    pthread_t *thread; // count - 1 of them
    pthread_mutex_t mutex;
    pthread_cond_t start;
    pthread_cond_t done;
    unsigned generation; // counts calls of threads_run; a change wakes the workers
    int running;
    bool closing;
    int tasks;
    threads_task_t task;
    void *context;
};

typedef struct worker {
    threads_t *threads;
    int number;
} worker_t;

static void threads_share(threads_t *threads, int worker) {
    int first = (int)((long)threads->tasks * worker / threads->count);
    int last = (int)((long)threads->tasks * (worker + 1) / threads->count);
    for (int i = first; i < last; i++) threads->task(threads->context, i, worker);
}

static void *threads_main(void *argument) {
    worker_t worker = *(worker_t *)argument;
    free(argument);
    threads_t *threads = worker.threads;
    unsigned seen = 0;
    pthread_mutex_lock(&threads->mutex);
    for (;;) {
        while (threads->generation == seen && !threads->closing) pthread_cond_wait(&threads->start, &threads->mutex);
        if (threads->closing) break;
        seen = threads->generation;
        pthread_mutex_unlock(&threads->mutex);
        threads_share(threads, worker.number);
        pthread_mutex_lock(&threads->mutex);
        if (--threads->running == 0) pthread_cond_signal(&threads->done);
    }
    pthread_mutex_unlock(&threads->mutex);
    return NULL;
}

status_t threads_open(int count, threads_t **out) {
    threads_t *threads;
    *out = NULL;
    if (count < 1) FAIL(STATUS_INVALID, "the number of threads must be 1 or more, not %d", count);
    TRY(ALLOCATE(&threads, 1));
    threads->count = 1;
    pthread_mutex_init(&threads->mutex, NULL);
    pthread_cond_init(&threads->start, NULL);
    pthread_cond_init(&threads->done, NULL);
    status_t status = ALLOCATE(&threads->thread, count);
    for (int i = 0; !status && i < count - 1; i++) {
        worker_t *worker;
        status = ALLOCATE(&worker, 1);
        if (status) break;
        *worker = (worker_t){.threads = threads, .number = i + 1};
        if (pthread_create(&threads->thread[i], NULL, threads_main, worker)) {
            free(worker);
            status = STATUS_NEW(STATUS_FAILED, "cannot start thread %d of %d; raise 'ulimit -u' or use fewer threads",
                                i + 2, count);
            break;
        }
        threads->count++;
    }
    if (status) {
        threads_close(threads);
        return status;
    }
    *out = threads;
    return STATUS_OK;
}

void threads_close(threads_t *threads) {
    if (!threads) return;
    pthread_mutex_lock(&threads->mutex);
    threads->closing = true;
    pthread_cond_broadcast(&threads->start);
    pthread_mutex_unlock(&threads->mutex);
    for (int i = 0; i < threads->count - 1; i++) pthread_join(threads->thread[i], NULL);
    pthread_mutex_destroy(&threads->mutex);
    pthread_cond_destroy(&threads->start);
    pthread_cond_destroy(&threads->done);
    free(threads->thread);
    free(threads);
}

int threads_count(const threads_t *threads) {
    return threads->count;
}

void threads_run(threads_t *threads, int tasks, threads_task_t task, void *context) {
    if (threads->count == 1 || tasks <= 1) {
        for (int i = 0; i < tasks; i++) task(context, i, 0);
        return;
    }
    pthread_mutex_lock(&threads->mutex);
    threads->tasks = tasks;
    threads->task = task;
    threads->context = context;
    threads->running = threads->count - 1;
    threads->generation++;
    pthread_cond_broadcast(&threads->start);
    pthread_mutex_unlock(&threads->mutex);
    threads_share(threads, 0);
    pthread_mutex_lock(&threads->mutex);
    while (threads->running) pthread_cond_wait(&threads->done, &threads->mutex);
    pthread_mutex_unlock(&threads->mutex);
}
