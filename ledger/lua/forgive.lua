#!lua flags=allow-oom
-- ARGV: job, then ids of dead letters
-- Takes letters off the list; the job's count goes with them.
local job = ARGV[1]
local key = job_key(job)
local gone = 0
for i = 2, #ARGV do
  gone = gone + redis.call('HDEL', P .. 'dead:' .. job, ARGV[i])
end
if gone > 0 and redis.call('EXISTS', key) == 1 then redis.call('HINCRBY', key, 'dead', -gone) end
return gone
