#!lua flags=allow-oom
-- ARGV: job, holder
local key = job_key(ARGV[1]) .. ':producer'
if redis.call('GET', key) == ARGV[2] then redis.call('DEL', key) end
return 'free'
