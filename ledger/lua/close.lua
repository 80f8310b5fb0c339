#!lua flags=allow-oom
-- ARGV: batch, done, tokens_seen, tokens_kept, truncated, dead letters as a JSON object, lost, amounts by field of the job as a JSON object, keys of its blobs that are here, too
-- After the store's acknowledgement: ends the batch and moves the job's totals, once.
local batch = ARGV[1]
local key = batch_key(batch)
for i = 9, #ARGV do redis.call('UNLINK', ARGV[i]) end
if redis.call('EXISTS', key) == 0 then return { 'closed' } end
local job = redis.call('HGET', key, 'job')
local woken = forget(batch, job)
local about, now, dead = job_key(job), now_ms(), 0
for id, letter in pairs(cjson.decode(ARGV[6])) do
  dead = dead + redis.call('HSETNX', P .. 'dead:' .. job, id, letter)
end
redis.call('HINCRBY', about, 'done', ARGV[2])
redis.call('HINCRBY', about, 'lost', ARGV[7])
local total = redis.call('HINCRBY', about, 'dead', dead)
if dead > 0 and total >= tonumber(redis.call('HGET', about, 'max_dead')) and redis.call('HGET', about, 'state') == 'open' then
  redis.call('HSET', about, 'state', 'paused')
end
redis.call('HINCRBY', about, 'tokens_seen', ARGV[3])
redis.call('HINCRBY', about, 'tokens_kept', ARGV[4])
redis.call('HINCRBY', about, 'truncated', ARGV[5])
for field, amount in pairs(cjson.decode(ARGV[8])) do redis.call('HINCRBYFLOAT', about, field, amount) end
redis.call('HSET', about, 'moved', now)
finish_if_done(job, now)
return { 'done', woken }
