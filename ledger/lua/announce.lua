#!lua flags=allow-oom
-- ARGV: process, its description of itself, TTL in ms, its name@host if it is ready (else empty)
-- On a full server, too: a fleet that frees memory must still be seen to live.
redis.call('SET', P .. 'alive:' .. ARGV[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', P .. 'alive', (now_ms() + ARGV[3]) / 1000, ARGV[1])
if ARGV[4] ~= '' then redis.call('HDEL', P .. 'failed', ARGV[4]) end
return 'announced'
