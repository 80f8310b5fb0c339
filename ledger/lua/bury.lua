-- ARGV: job, then pairs of id, letter
-- Chunks that never reached a batch go straight to the dead letters; past the limit the job pauses.
local job = ARGV[1]
local key = job_key(job)
if redis.call('EXISTS', key) == 0 then return { 'gone', 0 } end
local dead = 0
for i = 2, #ARGV, 2 do
  dead = dead + redis.call('HSETNX', P .. 'dead:' .. job, ARGV[i], ARGV[i + 1])
end
local total = redis.call('HINCRBY', key, 'dead', dead)
if dead > 0 and total >= tonumber(redis.call('HGET', key, 'max_dead')) and redis.call('HGET', key, 'state') == 'open' then
  redis.call('HSET', key, 'state', 'paused')
end
return { redis.call('HGET', key, 'state'), total }
